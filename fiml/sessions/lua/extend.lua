-- Move the expiry of a live session later, never earlier.
-- KEYS 1 header, 2 audit trail
-- ARGV 1 caller ('' for any), 2 now, 3 by how much, 4 the latest expiry allowed, in microseconds;
--      5 the entry of the trail up to the version
-- Returns {'extended'}; {'expired', expiry}; {'viewer'} for one; nil where the session isn't there for this caller.
local right = right_of_caller()
if not right then return nil end
if right < 2 then return {'viewer'} end

local times = redis.call('HMGET', KEYS[1], 'expires', 'accessed')
local now, expires, accessed = tonumber(ARGV[2]), tonumber(times[1]), tonumber(times[2])
if now >= expires then return {'expired', times[1]} end

local later = math.max(expires, math.min(expires + tonumber(ARGV[3]), tonumber(ARGV[4])))
redis.call('HSET', KEYS[1], 'expires', string.format('%.0f', later),
  'accessed', string.format('%.0f', math.max(accessed, now)))
redis.call('RPUSH', KEYS[2], ARGV[5] .. redis.call('HINCRBY', KEYS[1], 'version', 1) .. ']')
return {'extended'}
