"""What an endpoint will cost: a discrete-event simulation of its workers, `bge plan`.

    scenario ─▶ arrivals ─▶ simulation ─▶ report ─▶ advice, page
                    cards ─────┘   sweep: many simulations

    scenario.py      the TOML file: traffic, endpoint, targets
    cards.py         cards.toml: rates and prices of cards, prices of hosted models
    arrivals.py      when requests arrive, and how many tokens they have
    worker.py        a worker: its slots, its micro-batches, its life as it is billed
    simulation.py    the queue, the scaler and the workers
    report.py        percentiles, dollars, the same traffic at hosted prices
    sweep.py         cards, idle timeouts and min workers; the Pareto front of cost and p99
    advice.py        one sentence
    page.py          an HTML page with plots
    command.py       `bge plan`

Nothing here imports the worker: the planner needs no torch.
"""
