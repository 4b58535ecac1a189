-- Give a live session new texts in the place of the old ones, unless somebody wrote to it since they were read.
-- KEYS 1 header, 2 entries, 3 queries
-- ARGV 1 only at this version, 2 bytes of the queries, 3 how many entries, then field and value of each;
--      how many queries, then the JSON of each, all of them in their order
-- Returns 'rewritten'; 'changed' where it is at another version; 'absent' where it isn't live.
local version = redis.call('HGET', KEYS[1], 'version')
if not version then return 'absent' end
if version ~= ARGV[1] then return 'changed' end

local at = 4
for _ = 1, tonumber(ARGV[3]) do
  redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  at = at + 2
end
redis.call('DEL', KEYS[3])
for i = at + 1, at + tonumber(ARGV[at]) do redis.call('RPUSH', KEYS[3], ARGV[i]) end
redis.call('HSET', KEYS[1], 'history_bytes', ARGV[2])
return 'rewritten'
