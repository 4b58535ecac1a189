-- The beginning of each script that checks a caller's right.
-- KEYS 1 header; ARGV 1 caller ('' for any)
-- Returns 3 for the owner, 2 for an editor, 1 for a viewer; nil if the caller doesn't see the session.
local function right_of_caller()
  if ARGV[1] == '' then return redis.call('EXISTS', KEYS[1]) == 1 and 3 or nil end
  local held = redis.pcall('HMGET', KEYS[1], 'user', 's:' .. ARGV[1])
  if held.err then
    -- A header that isn't a hash belongs to nobody.
    return not string.find(held.err, '^WRONGTYPE') and error(held.err) or nil
  end
  if held[1] == ARGV[1] then return 3 end
  return held[2] and tonumber(held[2]) or nil
end

-- The values of fields of the header. The script fails if one is not a number, so call this before writing anything.
local function numbers_of(...)
  local found = redis.call('HMGET', KEYS[1], ...)
  for i, name in ipairs({...}) do
    assert(string.find(found[i] or '', '^%-?%d+$'), name .. ' is no number')
  end
  return unpack(found)
end

-- Make the next version, with its entry in the trail.
local function raise_version(trail, entry, version, format, newest_format)
  -- First, since only this can fail: if the key has another type.
  redis.call('RPUSH', trail, entry .. string.format('%.0f', tonumber(version) + 1) .. ']')
  redis.call('HINCRBY', KEYS[1], 'version', 1)
  -- A record of format 1 lacks totals, which only counting all queries would provide: it keeps its format.
  if tonumber(format) > 1 then redis.call('HSET', KEYS[1], 'format', newest_format) end
end
