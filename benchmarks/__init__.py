"""What a step costs, next to what it could cost and to what others make it cost."""
