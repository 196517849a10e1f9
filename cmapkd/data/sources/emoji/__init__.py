"""Emoji Scenes in parts: packages -> catalogue -> splits -> scenes -> pictures, captions and questions."""
