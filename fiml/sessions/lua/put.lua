-- Store a session that isn't live: a new one, or one that comes back from the archive.
-- KEYS 1 header, 2 entries, 3 queries, 4 ids of the queries, 5 audit trail, 6 floor
-- ARGV 1 version, 2 how many header fields follow, then field and value of each;
--      how many entries, then field and value of each; how many queries, then id and JSON of each;
--      then the entries of the trail
-- Returns 'stored'; 'live' if it is live already; 'outdated' if this or a later version was live recently; 'deleted' if
-- it was deleted for good.
if redis.call('EXISTS', KEYS[1]) == 1 then return 'live' end
local floor = redis.call('GET', KEYS[6])
if floor == 'deleted' then return 'deleted' end
if floor and tonumber(floor) >= tonumber(ARGV[1]) then return 'outdated' end

local at = 2
local function pairs_of_group(each)
  local count = tonumber(ARGV[at])
  at = at + 1
  for _ = 1, count do
    each(ARGV[at], ARGV[at + 1])
    at = at + 2
  end
end

pairs_of_group(function(field, value) redis.call('HSET', KEYS[1], field, value) end)
pairs_of_group(function(field, value) redis.call('HSET', KEYS[2], field, value) end)
pairs_of_group(function(id, json)
  redis.call('SADD', KEYS[4], id)
  redis.call('RPUSH', KEYS[3], json)
end)
for i = at, #ARGV do redis.call('RPUSH', KEYS[5], ARGV[i]) end
return 'stored'
