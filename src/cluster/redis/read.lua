-- Reads the history of a room after an id, and begins it if there is none.
-- Keys: position, messages.
-- Returns the position, the sequence at which the epoch began, the sequence of the first message, and the messages.
local run_id, since_epoch, since = ARGV[1], ARGV[2], tonumber(ARGV[3])
local reply_max, message_overhead = tonumber(ARGV[4]), tonumber(ARGV[5])
local new_epoch, expiry = ARGV[6], ARGV[7]

local position = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'run_id', 'bytes', 'base')
local epoch, seq, bytes = position[1], tonumber(position[2]), tonumber(position[4])
local base = tonumber(position[5])
local len = redis.call('LLEN', KEYS[2])
if not (epoch and seq and bytes and base and position[3] == run_id) or len > seq then
  -- The messages of the last epoch that are still there remain, under ids of the new one.
  epoch, seq, base, bytes = new_epoch, len, len, 0
  for _, kept in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
    bytes = bytes + #kept
  end
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'base', base, 'run_id', run_id, 'seq', seq, 'bytes', bytes)
end
redis.call('PEXPIRE', KEYS[1], expiry)
redis.call('PEXPIRE', KEYS[2], expiry)
local first = seq - len + 1
if epoch == since_epoch and since <= seq and since >= first then
  first = since + 1
end
local messages = {}
if first <= seq then
  messages = redis.call('LRANGE', KEYS[2], first - seq - 1, -1)
end
if bytes + len * message_overhead > reply_max then
  -- What is too old for one reply counts as no longer kept.
  local from, size = #messages + 1, 0
  while from > 1 do
    size = size + #messages[from - 1] + message_overhead
    if size > reply_max then
      break
    end
    from = from - 1
  end
  first = first + from - 1
  local newest = {}
  for at = from, #messages do
    newest[#newest + 1] = messages[at]
  end
  messages = newest
end
return { epoch .. '-' .. string.format('%.0f', seq), base, first, messages }
