"""The server's side of the MQTT broker, which is a cache and is not trusted."""
