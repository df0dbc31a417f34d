"""What a routing costs at any size: the dispatcher's plans, made for ranks that are not there."""
