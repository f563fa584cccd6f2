"""Draws the loss curves of a training run."""

from pictures.style import BAR, BLUE, ORANGE, hide_spines, save_figure


def draw_losses(path, curves, size=(7, 4.2)):
    """Write a picture of losses. curves: name -> [(iteration, loss in nats per token)]. size: in inches."""
    from matplotlib.figure import Figure  # without pyplot, so that a thread may draw, as in the notebook

    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots()
    styles = ({'color': BAR, 'linewidth': 0.8}, {'color': BLUE, 'marker': 'o'}, {'color': ORANGE, 'marker': 's'})
    for (name, points), style in zip(curves.items(), styles):
        if points:
            axes.plot(*zip(*points), label=name, markersize=4, **style)
    axes.set_xlabel('iteration')
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel('loss, nats per token')
    axes.grid(color='#dddddd', linewidth=0.6)
    if any(curves.values()):
        axes.legend(frameon=False)
    hide_spines(axes, 'top', 'right')
    save_figure(figure, path)
