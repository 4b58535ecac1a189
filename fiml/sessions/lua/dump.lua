-- Everything that is stored of a session, however damaged it is.
-- KEYS 1 header, 2 entries, 3 queries, 4 ids of the queries, 5 audit trail
-- Returns for each key its type and its content; for a type that no session uses, the result of DUMP.
local found = {}
for i, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  local held = {}
  if kind == 'hash' then
    held = redis.call('HGETALL', key)
  elseif kind == 'list' then
    held = redis.call('LRANGE', key, 0, -1)
  elseif kind == 'set' then
    held = redis.call('SMEMBERS', key)
  elseif kind ~= 'none' then
    held = {redis.call('DUMP', key)}
  end
  found[i] = {kind, held}
end
return found
