-- The dead letters behind the entry ARGV[1], at most ARGV[2], the oldest first, without their requests: a list of
-- {entry, id, code, reason, consumer, tries}.
local found = {}
for _, entry in ipairs(redis.call('XRANGE', base .. ':dead', '(' .. ARGV[1], '+', 'COUNT', ARGV[2])) do
  local letter = {}
  for i = 1, #entry[2], 2 do letter[entry[2][i]] = entry[2][i + 1] end
  found[#found + 1] = {entry[1], letter.id or '', letter.code or '', letter.reason or '', letter.consumer or '',
    letter.tries or ''}
end
return found
