-- Replace the texts of a live session that were read. What others wrote since then stays: an entry is only replaced if
-- it is still what was read, and within one life, queries are only ever appended. The version stays; the format rises
-- as with any write, so that no older fiml takes ciphertext for data.
-- KEYS 1 header, 2 entries, 3 queries
-- ARGV 1 only in this life, 2 newest format known, 3 how many entries, then field, SHA-1 of the text that was read, and
--      new text of each; how many queries, then the new JSON of each, the first ones of the session in their order
-- Returns 'rewritten'; 'changed' if it has another life, or a later format by now; 'absent' if it isn't live.
local life, format = unpack(redis.call('HMGET', KEYS[1], 'life', 'format'))
if not life then return 'absent' end
local queries = redis.call('LRANGE', KEYS[3], 0, -1)
local first = 4 + 3 * tonumber(ARGV[3])
local count = tonumber(ARGV[first])
if life ~= ARGV[1] or tonumber(format) > tonumber(ARGV[2]) or #queries < count then return 'changed' end

for at = 4, first - 1, 3 do
  local stored = redis.call('HGET', KEYS[2], ARGV[at])
  if stored and redis.sha1hex(stored) == ARGV[at + 1] then redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 2]) end
end

local longer = 0
for i = 1, count do
  longer = longer + #ARGV[first + i] - #queries[i]
  queries[i] = ARGV[first + i]
end
redis.call('DEL', KEYS[3])
for _, text in ipairs(queries) do redis.call('RPUSH', KEYS[3], text) end
redis.call('HINCRBY', KEYS[1], 'history_bytes', longer)
if tonumber(format) > 1 then redis.call('HSET', KEYS[1], 'format', ARGV[2]) end
return 'rewritten'
