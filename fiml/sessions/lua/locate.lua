-- What is needed to remove a live session, which may be damaged and otherwise unreadable.
-- KEYS 1 header
-- ARGV 1 caller ('' for any)
-- Returns the caller's right, user, version, life, microseconds of creation and expiry, format, then the fields of the
-- users it is shared with; nil if the caller doesn't see the session.
local right = right_of_caller()
if not right then return nil end
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return {right, false, false, false, false, false, false} end
local found = redis.call('HMGET', KEYS[1], 'user', 'version', 'life', 'created', 'expires', 'format')
table.insert(found, 1, right)
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, 2) == 's:' then found[#found + 1] = field end
end
return found
