from packhorse import Context, Packhorse

app = Packhorse("memory://")


@app.task
async def follow(ctx: Context, n: int) -> None: ...


def enqueue(ctx: Context) -> None:
    follow.enqueue(ctx, 1)  # error: call-arg, arg-type
