-- Reads the history of a room after an id.
-- Keys: position, messages.
-- Returns the position, the sequence of the first message, and the messages; or an empty array if there is no history.
local run_id, since_epoch, since = ARGV[1], ARGV[2], tonumber(ARGV[3])
local reply_max, message_overhead = tonumber(ARGV[4]), tonumber(ARGV[5])

local position = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'run_id', 'bytes')
local epoch, seq, bytes = position[1], tonumber(position[2]), tonumber(position[4])
if not (epoch and seq and bytes and position[3] == run_id) then
  return {}
end
local len = redis.call('LLEN', KEYS[2])
local first = seq - len + 1
if first < 1 then
  -- Somebody else has written to these keys.
  return {}
end
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
return { epoch .. '-' .. string.format('%.0f', seq), first, messages }
