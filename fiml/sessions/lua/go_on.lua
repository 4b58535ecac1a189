-- Let a live session that has expired go on living; one that hasn't stays as it is.
-- KEYS 1 header, 2 audit trail
-- ARGV 1 caller ('' for any), 2 now, 3 the new expiry, in microseconds; 4 the entry of the trail up to the version
-- Returns {'live'}; {'viewer'} for one; nil where the session isn't there for this caller.
local right = right_of_caller()
if not right then return nil end
if right < 2 then return {'viewer'} end

local times = redis.call('HMGET', KEYS[1], 'expires', 'accessed')
if tonumber(ARGV[2]) >= tonumber(times[1]) then
  redis.call('HSET', KEYS[1], 'expires', ARGV[3])
  redis.call('RPUSH', KEYS[2], ARGV[4] .. redis.call('HINCRBY', KEYS[1], 'version', 1) .. ']')
end
if tonumber(ARGV[2]) > tonumber(times[2]) then redis.call('HSET', KEYS[1], 'accessed', ARGV[2]) end
return {'live'}
