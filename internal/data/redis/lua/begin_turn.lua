-- Store what the user said in a turn of the thread KEYS[1], once, and forget the oldest turns of one that grew too large.
-- ARGV: its response, the one before it, the messages, and how many bytes a thread may have.
local id, previous, messages, max_bytes = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local turns = base .. ':turns'
if redis.call('HSETNX', base, id .. ':said', messages) == 1 then
  redis.call('HSET', base, id .. ':previous', previous)
  redis.call('RPUSH', turns, id)
  local bytes = redis.call('HINCRBY', base, 'bytes', #messages)
  while bytes > max_bytes and redis.call('LLEN', turns) > 1 do
    local oldest = redis.call('LPOP', turns)
    local said, answer = oldest .. ':said', oldest .. ':answer'
    local size = redis.call('HSTRLEN', base, said) + redis.call('HSTRLEN', base, answer)
    redis.call('HDEL', base, said, answer, oldest .. ':previous', oldest .. ':attempt')
    bytes = redis.call('HINCRBY', base, 'bytes', -size)
  end
end
keep(base)
keep(turns)
