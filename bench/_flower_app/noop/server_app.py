"""FedAvg over all clients, evaluation off; each round's beginning is marked."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from noop.marks import mark

app = ServerApp()


class MarkedFedAvg(FedAvg):
    """FedAvg that notes when a round begins."""

    marks = ""

    def configure_train(self, server_round, arrays, config, grid):
        mark(self.marks, "round", server_round)
        return super().configure_train(server_round, arrays, config, grid)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds."""
    config = context.run_config
    sites, rank, width = int(config["sites"]), int(config["rank"]), int(config["width"])
    shapes = [(width, rank), (rank, width)] * int(config["groups"])
    start = ArrayRecord([np.random.default_rng(0).standard_normal(shape, dtype=np.float32) for shape in shapes])
    strategy = MarkedFedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites, min_evaluate_nodes=0)
    strategy.marks = str(config["marks"])
    strategy.start(grid=grid, initial_arrays=start, num_rounds=int(config["rounds"]))
    mark(strategy.marks, "round", int(config["rounds"]) + 1)
