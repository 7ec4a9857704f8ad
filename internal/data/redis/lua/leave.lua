-- A worker takes nothing more.
depart(ARGV[1])
