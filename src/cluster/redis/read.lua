-- Reads the histories of rooms after an id each, and begins those that are missing.
-- Keys: for each room, position and messages.
-- Arguments: the run_id, the most bytes of all messages, the most with which a further room than the first is read, what a
-- message counts in addition to its length, the expiry; then for each room the epoch and the sequence of the id, the epoch of a
-- new history, and whether its expiry is extended.
-- Returns for each room the position, the sequence at which the epoch began, the sequence of the first message, and the
-- messages; nil for one that has to be read again as the first of its command; or an error, which concerns only this room.
local run_id, left, left_for_others = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local message_overhead, expiry = ARGV[4], ARGV[5]
local call, format = redis.call, string.format

local function read(is_first, position_key, messages_key, since_epoch, since, new_epoch, is_extended)
  local position = call('GET', position_key) or ''
  local epoch, seq, base, bytes, owner = string.match(position, '^(%x+) (%d+) (%d+) (%d+) (%S+)$')
  seq, base = tonumber(seq), tonumber(base)
  local len = call('LLEN', messages_key)
  if owner ~= run_id or len > seq then
    -- The messages of the last epoch that are still there remain, under ids of the new one.
    epoch, seq, base, bytes = new_epoch, len, len, 0
    if len > 0 then
      for _, kept in ipairs(call('LRANGE', messages_key, 0, -1)) do
        bytes = bytes + #kept
      end
    end
    -- The first command that writes must be one that the server refuses if it lacks memory.
    call('SET', position_key, format('%s %d %d %d %s', epoch, seq, base, bytes, run_id), 'PX', expiry)
    if len > 0 then
      call('PEXPIRE', messages_key, expiry)
    end
  elseif is_extended then
    call('PEXPIRE', position_key, expiry)
    call('PEXPIRE', messages_key, expiry)
  end
  local first = seq - len + 1
  if epoch == since_epoch and since <= seq and since >= first then
    first = since + 1
  end
  local messages = {}
  if first <= seq then
    local count = seq - first + 1
    -- An estimate, so that messages are not copied in vain.
    if not is_first and bytes * count / len + count * message_overhead > left_for_others then
      return false
    end
    messages = call('LRANGE', messages_key, -count, -1)
  end
  -- What is too old for one reply counts as no longer kept.
  local from, read_bytes = #messages + 1, 0
  while from > 1 do
    local sum = read_bytes + #messages[from - 1] + message_overhead
    if sum > left then
      break
    end
    read_bytes = sum
    from = from - 1
  end
  if not is_first and read_bytes > 0 and (from > 1 or read_bytes > left_for_others) then
    return false
  end
  left = left - read_bytes
  left_for_others = left_for_others - read_bytes
  if from > 1 then
    local newest = {}
    for at = from, #messages do
      newest[#newest + 1] = messages[at]
    end
    messages = newest
  end
  return { format('%s-%d', epoch, seq), base, first + from - 1, messages }
end

local histories = {}
for room = 1, #KEYS / 2 do
  local at = 4 * room + 2
  local position_key, messages_key = KEYS[2 * room - 1], KEYS[2 * room]
  local epoch, seq, new_epoch, is_extended = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3] == '1'
  local done, history = pcall(read, room == 1, position_key, messages_key, epoch, seq, new_epoch, is_extended)
  if not done then
    -- Up to version 6, the error is a text that contains the server's: "user_script: 28: -OOM …".
    local text = type(history) == 'table' and history.err or string.match(history, '%-(%u+ .*)$') or history
    history = { err = text }
  end
  histories[room] = history
end
return histories
