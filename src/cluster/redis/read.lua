-- Reads the histories of rooms after an id each, and begins those that are missing.
-- Keys: for each room, position and messages.
-- Arguments: the run_id, the most bytes of all messages, what a message counts in addition to its length, the expiry; then for
-- each room the epoch and the sequence of the id, the epoch of a new history, and whether its expiry is extended.
-- Returns for each room the position, the sequence at which the epoch began, the sequence of the first message, and the
-- messages.
local run_id, left, message_overhead, expiry = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

local function read(position_key, messages_key, since_epoch, since, new_epoch, is_extended)
  local position = redis.call('GET', position_key) or ''
  local epoch, seq, base, bytes, owner = string.match(position, '^(%x+) (%d+) (%d+) (%d+) (%S+)$')
  seq, base = tonumber(seq), tonumber(base)
  local len = redis.call('LLEN', messages_key)
  if owner ~= run_id or len > seq then
    -- The messages of the last epoch that are still there remain, under ids of the new one.
    epoch, seq, base, bytes = new_epoch, len, len, 0
    if len > 0 then
      for _, kept in ipairs(redis.call('LRANGE', messages_key, 0, -1)) do
        bytes = bytes + #kept
      end
    end
    -- The first command that writes must be one that the server refuses if it lacks memory.
    local value = string.format('%s %d %d %d %s', epoch, seq, base, bytes, run_id)
    redis.call('SET', position_key, value, 'PX', expiry)
    if len > 0 then
      redis.call('PEXPIRE', messages_key, expiry)
    end
  elseif is_extended then
    redis.call('PEXPIRE', position_key, expiry)
    redis.call('PEXPIRE', messages_key, expiry)
  end
  local first = seq - len + 1
  if epoch == since_epoch and since <= seq and since >= first then
    first = since + 1
  end
  local messages = {}
  if first <= seq then
    messages = redis.call('LRANGE', messages_key, first - seq - 1, -1)
  end
  -- What is too old for one reply counts as no longer kept.
  local from = #messages + 1
  while from > 1 do
    local size = #messages[from - 1] + message_overhead
    if size > left then
      break
    end
    left = left - size
    from = from - 1
  end
  if from > 1 then
    local newest = {}
    for at = from, #messages do
      newest[#newest + 1] = messages[at]
    end
    messages = newest
  end
  return { string.format('%s-%d', epoch, seq), base, first + from - 1, messages }
end

local histories = {}
for room = 1, #KEYS / 2 do
  local at = 4 * room + 1
  histories[room] = read(KEYS[2 * room - 1], KEYS[2 * room], ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3] == '1')
end
return histories
