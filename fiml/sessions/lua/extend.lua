-- Move the expiry of a live session later, never earlier.
-- KEYS 1 header
-- ARGV 1 owner ('' for any), 2 now, 3 by how much, 4 the latest expiry allowed, in microseconds
-- Returns {'extended'}; {'expired', expiry}; nil where the session isn't there for this owner.
if redis.call('EXISTS', KEYS[1]) == 0 then return nil end
if ARGV[1] ~= '' and redis.call('HGET', KEYS[1], 'user') ~= ARGV[1] then return nil end

local times = redis.call('HMGET', KEYS[1], 'expires', 'accessed')
local now, expires, accessed = tonumber(ARGV[2]), tonumber(times[1]), tonumber(times[2])
if now >= expires then return {'expired', times[1]} end

local later = math.max(expires, math.min(expires + tonumber(ARGV[3]), tonumber(ARGV[4])))
redis.call('HSET', KEYS[1], 'expires', string.format('%.0f', later),
  'accessed', string.format('%.0f', math.max(accessed, now)))
redis.call('HINCRBY', KEYS[1], 'version', 1)
return {'extended'}
