-- Take one call from a principal's allowance, or say how long to wait for one.
-- KEYS 1 when the allowance will be full again, in microseconds
-- ARGV 1 now, 2 how long one call takes to grow back, 3 how long the whole allowance takes, all in microseconds
-- Returns 0 if the call was taken, else the microseconds until there is one.
local now, cost, whole = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local whole_at = math.max(tonumber(redis.call('GET', KEYS[1]) or ARGV[1]), now) + cost
local wait = whole_at - whole - now
if wait > 0 then return wait end
redis.call('SET', KEYS[1], string.format('%.0f', whole_at), 'PX', math.ceil((whole_at - now) / 1000))
return 0
