"""What a compile is made of: settings, journal, passes and their manager, rules and patterns."""
