"""The schedules that have a name: one function each, from counts to a table."""
