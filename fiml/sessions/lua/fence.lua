-- Keep archived copies of a session, up to a version, from becoming live.
-- KEYS 1 header, 2 floor
-- ARGV 1 the version, 2 seconds to remember it
-- Returns 1; 0 if the session is live already, and nothing was done.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local floor = redis.call('GET', KEYS[2])
if floor ~= 'deleted' and tonumber(floor or 0) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
end
return 1
