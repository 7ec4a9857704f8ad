-- {waiting, running, age (ms) of the oldest that waits or false, dead}.
local oldest = redis.call('ZRANGE', base .. ':waiting', 0, 0, 'WITHSCORES')
return {redis.call('ZCARD', base .. ':waiting'), redis.call('ZCARD', base .. ':running'), oldest[2] and NOW_MS - oldest[2] or false,
  redis.call('XLEN', base .. ':dead')}
