-- Move an entry of the expiry index, unless somebody has moved it since it was read.
-- KEYS 1 the part of the index
-- ARGV 1 member, 2 the expiry that was read, 3 the new expiry, in microseconds
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score or tonumber(score) ~= tonumber(ARGV[2]) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])  -- first, as in remove.lua
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
return 1
