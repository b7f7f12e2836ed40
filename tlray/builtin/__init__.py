"""The backbone, heads and weights provider that come with tlray; registered like any plugin."""
