"""paho-mqtt 2 as a device that knows nothing of IoT Hub: TLS, the documented login, a persistent session."""
import os
import ssl
import threading

import paho.mqtt.client as mqtt

from signing import login


class Device:
    """One connection over mqtt or ws. on_message(topic, payload) is called for each message; a refused connection is in `refusal`."""

    def __init__(self, transport, on_message=lambda topic, payload: None):
        self.host, self.id, user, password = login(os.environ["DEVICE_CONNECTION_STRING"])
        self.connected = threading.Event()
        self.answered = threading.Event()
        self.refusal = None
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=self.id,
            clean_session=False,
            protocol=mqtt.MQTTv311,
            transport="websockets" if transport == "ws" else "tcp",
            reconnect_on_failure=False,
        )
        if transport == "ws":
            self.client.ws_set_options(path="/$iothub/websocket")
        self.client.username_pw_set(user, password)
        self.client.tls_set(os.environ["CA_FILE"], tls_version=ssl.PROTOCOL_TLS_CLIENT)
        self.client.on_connect = self._on_connect
        self.client.on_message = lambda c, u, m: on_message(m.topic, m.payload)
        self.client.on_subscribe = lambda c, u, mid, codes, properties: self.answered.set()
        self.port = 443 if transport == "ws" else 8883

    def _on_connect(self, client, userdata, flags, reason, properties):
        self.refusal = reason if reason.is_failure else None
        self.connected.set()

    def open(self):
        """Connects; False if the hub refused."""
        self.client.connect(self.host, self.port, keepalive=60)
        self.client.loop_start()
        assert self.connected.wait(20), "no CONNACK within 20 s"
        return self.refusal is None

    def subscribe(self, topic):
        self.answered.clear()
        self.client.subscribe(topic, qos=1)
        assert self.answered.wait(20), "no SUBACK within 20 s"

    def publish(self, topic, payload):
        self.client.publish(topic, payload, qos=1).wait_for_publish(20)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()
