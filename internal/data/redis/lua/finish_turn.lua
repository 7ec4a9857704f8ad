-- Store how a turn of the thread KEYS[1] ended, unless a later attempt at it did, or it is forgotten. ARGV: its response,
-- the attempt, and what the model answered ('' when there is nothing to remember).
local id, attempt, answer = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local state = redis.call('HMGET', base, id .. ':said', id .. ':attempt')
if state[1] and attempt > tonumber(state[2] or -1) then
  redis.call('HINCRBY', base, 'bytes', #answer - redis.call('HSTRLEN', base, id .. ':answer'))
  redis.call('HSET', base, id .. ':attempt', attempt, id .. ':answer', answer)
  keep(base)
  keep(base .. ':turns')
end
