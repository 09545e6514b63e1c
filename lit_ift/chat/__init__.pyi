from .conversation import Conversation, Message
from .encoder import ConversationEncoder, resolve_chat_template
from .example import Example

__all__ = ["Conversation", "ConversationEncoder", "Example", "Message", "resolve_chat_template"]
