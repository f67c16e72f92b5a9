"Small models and their training steps, in either library: what several measurements share."


def layers(library, sizes, norm=False, dropout=0.0):
    "A perceptron of these sizes, with ReLUs between, in `torch.nn` or `minima.nn`."
    members = []
    for i, (n, m) in enumerate(zip(sizes, sizes[1:])):
        members.append(library.Linear(n, m))
        if i < len(sizes) - 2:
            members += [library.LayerNorm(m)] * norm + [library.ReLU()]
            members += [library.Dropout(dropout)] * bool(dropout)
    return library.Sequential(*members)


def step_of(model, optimizer, loss_fn):
    "A training step on a batch: what PyTorch's users and minima's write alike."

    def step(x, y):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step
