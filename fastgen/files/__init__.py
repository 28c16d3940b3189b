"""Files written for people: images, tables of values, plots."""
