"""Who may do what: users, records, access, history."""
