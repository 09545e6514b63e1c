from .encoder import ConversationEncoder, resolve_chat_template

__all__ = ["ConversationEncoder", "resolve_chat_template"]
