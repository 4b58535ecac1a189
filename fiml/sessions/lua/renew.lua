-- Pack the totals of a live session whose header has each of them in a field of its own.
-- KEYS 1 header
-- ARGV 1 only at this version, 2 the format; then the fields to set (field, value)
-- Returns 'renewed', or 'changed' where it is at another version or isn't live.
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[1] then return 'changed' end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.find(field, '^[nbd]:') then redis.call('HDEL', KEYS[1], field) end
end
redis.call('HDEL', KEYS[1], 'total', 'hits', 'first', 'last', 'timed', 'time_ms')
redis.call('HSET', KEYS[1], 'format', ARGV[2], unpack(ARGV, 3))
return 'renewed'
