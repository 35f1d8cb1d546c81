"""A client that trains nothing: it adds noise, so that what it sends is new each time, and sleeps where local work is asked for."""

import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from noop.marks import mark

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a round."""
    number = int(message.content["config"]["server-round"])
    mark(str(context.run_config["marks"]), "begun", number)
    random = np.random.default_rng()
    arrays = [
        array + np.float32(0.01) * random.standard_normal(array.shape, dtype=np.float32)
        for array in message.content["arrays"].to_numpy_ndarrays()
    ]
    time.sleep(float(context.run_config["work"]))
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 10})})
    return Message(content=content, reply_to=message)
