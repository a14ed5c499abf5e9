"""Chat templates."""

CHAT = [
    {"role": "user", "content": "the red cat"},
    {"role": "assistant", "content": "sees a dog"},
    {"role": "user", "content": "and the blue one"},
    {"role": "assistant", "content": "likes it"},
]
