-- Appends an envelope to the history of a room, and publishes it with its id.
-- Keys: position, messages, counter.
-- Returns the id; 0 if the counter is not above the node's last one; 1 if this is not known, since the last one was deleted; or,
-- if the position is another than the expected one, an array with the position. Begins the history before if there is none.
local counter, run_id, new_epoch, expected = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local messages_max, bytes_max = tonumber(ARGV[5]), tonumber(ARGV[6])
local expiry, counter_expiry, channel, envelope = ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local needs_counter = ARGV[11] == '1'
local call, format = redis.call, string.format

-- Each call is a good part of the script's time: one command reads both. It takes a key of another type for a missing one.
local found = call('MGET', KEYS[1], KEYS[3])
local position = found[1] or call('GET', KEYS[1]) or ''
local last = found[2] or call('GET', KEYS[3])
-- Both have 20 digits.
if last and last >= counter then
  return 0
end
if needs_counter and not last then
  return 1
end
-- The first command that writes must be one that the server refuses if it lacks memory. So a refused append has no effect.
call('SET', KEYS[3], counter, 'PX', counter_expiry)

local epoch, seq, base, bytes, owner = string.match(position, '^(%x+) (%d+) (%d+) (%d+) (%S+)$')
if owner == run_id then
  seq, bytes = tonumber(seq), tonumber(bytes)
else
  -- The messages of the last epoch that are still there remain, under ids of the new one.
  epoch, seq, bytes = new_epoch, 0, 0
  for _, kept in ipairs(call('LRANGE', KEYS[2], 0, -1)) do
    seq = seq + 1
    bytes = bytes + #kept
  end
  base = seq
end

local function set_position()
  call('SET', KEYS[1], format('%s %d %d %d %s', epoch, seq, base, bytes, run_id), 'PX', expiry)
end

if expected ~= '' then
  local actual = format('%s-%d', epoch, seq)
  if actual ~= expected then
    if owner ~= run_id then
      set_position()
    end
    return { actual }
  end
end

seq = seq + 1
local len = call('RPUSH', KEYS[2], envelope)
if len == 1 then
  -- The list may have been evicted.
  bytes = 0
end
bytes = bytes + #envelope
while len > messages_max or bytes > bytes_max do
  local oldest = call('LPOP', KEYS[2])
  if not oldest then
    bytes = 0
    break
  end
  len = len - 1
  bytes = bytes - #oldest
end
set_position()
call('PEXPIRE', KEYS[2], expiry)
local id = format('%s-%d', epoch, seq)
call('PUBLISH', channel, id .. '\n' .. envelope)
return id
