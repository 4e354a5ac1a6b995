"""From a schedule to a running loop: slots, integers, actions."""
