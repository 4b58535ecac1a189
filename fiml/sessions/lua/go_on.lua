-- Let a live session that has expired go on living; one that hasn't stays as it is.
-- KEYS 1 header
-- ARGV 1 owner ('' for any), 2 now, 3 the new expiry, in microseconds
-- Returns 1; nil where the session isn't there for this owner.
if redis.call('EXISTS', KEYS[1]) == 0 then return nil end
if ARGV[1] ~= '' and redis.call('HGET', KEYS[1], 'user') ~= ARGV[1] then return nil end

local times = redis.call('HMGET', KEYS[1], 'expires', 'accessed')
if tonumber(ARGV[2]) >= tonumber(times[1]) then
  redis.call('HSET', KEYS[1], 'expires', ARGV[3])
  redis.call('HINCRBY', KEYS[1], 'version', 1)
end
if tonumber(ARGV[2]) > tonumber(times[2]) then redis.call('HSET', KEYS[1], 'accessed', ARGV[2]) end
return 1
