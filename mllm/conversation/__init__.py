"""Conversations: the one schema of messages, chat formats, and the processor that makes token ids of them."""
