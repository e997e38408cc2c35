"""Programs that own their loop, such as games and robots, offered as environments."""
