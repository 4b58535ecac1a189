-- Change whom a session is shared with, whether it has expired or not. `rights.changed` does the same.
-- KEYS 1 header, 2 audit trail
-- ARGV 1 caller ('' for any), 2 now in microseconds, 3 the entry of the trail up to the version, 4 'set', 'drop',
--      'redeem', or 'look' for what redeeming would come to, 5 the field, or the digest of a code, 6 the value, 7 most
--      users, 8 most codes, 9 most changes, 10 newest format known, 11 only in this life ('' for any)
-- Returns {'done', header}; {'viewer'} if the caller isn't the owner; {'users', count}, {'codes'} or {'changes'} if
-- there would be too many; {'format', number} if a later fiml wrote the session; {'life'} if it has another life; nil
-- if the caller doesn't see the session.
-- The Python code makes sure that the owner gets no grant, which it can check before: the owner never changes.
local header = KEYS[1]
local right = right_of_caller()
local now = tonumber(ARGV[2])

local function done()
  return {'done', redis.call('HGETALL', header)}
end
local function counted(letters)
  local count = 0
  for _, field in ipairs(redis.call('HKEYS', header)) do
    local is_one = string.find(letters, string.sub(field, 1, 1), 1, true)
    if string.sub(field, 2, 2) == ':' and is_one then count = count + 1 end
  end
  return count
end
local function numbers() return numbers_of('version', 'format', 'expires', 'accessed') end
local function note()
  local version, format = numbers()
  raise_version(KEYS[2], ARGV[3], version, format, ARGV[10])
end
local function refused(most)
  local version, format = numbers()
  if tonumber(format) > tonumber(ARGV[10]) then return {'format', format} end
  return tonumber(version) >= most and {'changes'} or nil
end

local is_look = ARGV[4] == 'look'
if ARGV[4] == 'redeem' or is_look then
  if not right and redis.call('TYPE', header).ok ~= 'hash' then return nil end
  for letter, gives in pairs({e = 2, v = 1}) do
    local field = letter .. ':' .. ARGV[5]
    local expires = redis.call('HGET', header, field)
    if expires and tonumber(expires) > now and gives > (right or 0) then
      local refusal = refused(tonumber(ARGV[9]))
      if refusal then return refusal end
      if not right and counted('s') >= tonumber(ARGV[7]) then return {'users', counted('s') + 1} end
      if is_look then return done() end
      if ARGV[11] ~= '' and ARGV[11] ~= redis.call('HGET', header, 'life') then return {'life'} end
      note()
      redis.call('HDEL', header, field)
      redis.call('HSET', header, 's:' .. ARGV[1], gives)
      return done()
    end
  end
  -- A caller with a role has redeemed this code before, or doesn't need it.
  return right and done() or nil
end

if not right then return nil end
local is_mine = ARGV[4] == 'drop' and ARGV[5] == 's:' .. ARGV[1]
if right < 3 and not is_mine then return {'viewer'} end
if ARGV[11] ~= '' and ARGV[11] ~= redis.call('HGET', header, 'life') then return {'life'} end
if ARGV[4] == 'drop' then
  if redis.call('HEXISTS', header, ARGV[5]) == 1 then
    local refusal = refused(math.huge)  -- a grant can be taken back after any number of changes
    if refusal then return refusal end
    note()
    redis.call('HDEL', header, ARGV[5])
  end
  return done()
end
if redis.call('HGET', header, ARGV[5]) == ARGV[6] then return done() end
local refusal = refused(tonumber(ARGV[9]))
if refusal then return refusal end
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
note()
redis.call('HSET', header, ARGV[5], ARGV[6])
return done()
