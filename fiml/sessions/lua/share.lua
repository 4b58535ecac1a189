-- Change whom a session is given to, whether it has expired or not. As `rights.changed` has it.
-- KEYS 1 header, 2 audit trail
-- ARGV 1 caller ('' for any), 2 now in microseconds, 3 the entry of the trail up to the version, 4 'set', 'drop' or
--      'redeem', 5 the field, or the digest of a code, 6 the value, 7 most users, 8 most codes
-- Returns {'done', header}; {'viewer'} where the caller isn't the owner; {'code'} where a code gives nothing to somebody
-- who has a role; {'users', count}, {'codes'} where there would be too many; nil where the session isn't there for this
-- caller.
local header = KEYS[1]
local right = right_of_caller()
local now = tonumber(ARGV[2])

local function done()
  return {'done', redis.call('HGETALL', header)}
end
local function counted(letters)
  local count = 0
  for _, field in ipairs(redis.call('HKEYS', header)) do
    if string.sub(field, 2, 2) == ':' and string.find(letters, string.sub(field, 1, 1), 1, true) then count = count + 1 end
  end
  return count
end
local function note()
  redis.call('RPUSH', KEYS[2], ARGV[3] .. redis.call('HINCRBY', header, 'version', 1) .. ']')
end

if ARGV[4] == 'redeem' then
  if right == 3 then return done() end
  local mine = 's:' .. ARGV[1]
  for letter, gives in pairs({e = 2, v = 1}) do
    local field = letter .. ':' .. ARGV[5]
    local expires = redis.call('HGET', header, field)
    if expires and tonumber(expires) > now then
      if not right and counted('s') >= tonumber(ARGV[7]) then return {'users', counted('s') + 1} end
      redis.call('HDEL', header, field)
      redis.call('HSET', header, mine, math.max(gives, right or 0))
      note()
      return done()
    end
  end
  return right and {'code'} or nil
end

if not right then return nil end
local is_mine = ARGV[4] == 'drop' and ARGV[5] == 's:' .. ARGV[1]
if right < 3 and not is_mine then return {'viewer'} end
if ARGV[4] == 'drop' then
  if redis.call('HDEL', header, ARGV[5]) == 1 then note() end
  return done()
end
for _, field in ipairs(redis.call('HKEYS', header)) do
  local letter = string.sub(field, 1, 2)
  if (letter == 'v:' or letter == 'e:') and tonumber(redis.call('HGET', header, field)) <= now then
    redis.call('HDEL', header, field)
  end
end
if redis.call('HEXISTS', header, ARGV[5]) == 0 then
  local is_user = string.sub(ARGV[5], 1, 2) == 's:'
  if is_user and counted('s') >= tonumber(ARGV[7]) then return {'users', counted('s') + 1} end
  if not is_user and counted('ve') >= tonumber(ARGV[8]) then return {'codes'} end
end
if redis.call('HGET', header, ARGV[5]) ~= ARGV[6] then
  redis.call('HSET', header, ARGV[5], ARGV[6])
  note()
end
return done()
