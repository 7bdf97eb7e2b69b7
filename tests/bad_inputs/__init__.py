"""Bad inputs and what each command answers: one line that names the cause and the fix, and nothing half-written."""
