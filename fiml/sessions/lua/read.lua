-- A live session, with its entries and its queries, or the last of them.
-- KEYS 1 header, 2 entries, 3 queries, 4 audit trail, 5 ids of the queries: not read, but declared, so that a Cluster
--      that refuses a change of a session of which a part has moved refuses the read after it too
-- ARGV 1 caller ('' for any), 2 now in microseconds ('' leaves the last access), 3 how many queries ('' for all),
--      4 whether the trail is wanted (1)
-- Returns header, entries, queries and trail; nil if the caller doesn't see the session.
if not right_of_caller() then return nil end

if ARGV[2] ~= '' then
  local times = redis.call('HMGET', KEYS[1], 'expires', 'accessed')
  if tonumber(ARGV[2]) < tonumber(times[1]) and tonumber(ARGV[2]) > tonumber(times[2]) then
    redis.pcall('HSET', KEYS[1], 'accessed', ARGV[2])  -- even if the server refuses writes, the session can be read
  end
end

local queries = {}
if ARGV[3] == '' then
  queries = redis.call('LRANGE', KEYS[3], 0, -1)
elseif ARGV[3] ~= '0' then
  queries = redis.call('LRANGE', KEYS[3], -tonumber(ARGV[3]), -1)
end
local trail = {}
if ARGV[4] == '1' then trail = redis.call('LRANGE', KEYS[4], 0, -1) end
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]), queries, trail}
