"""The backbones and the heads that come with tlray; registered like any plugin."""
