from packhorse import Context, Packhorse

app = Packhorse("memory://")


@app.task
async def follow(ctx: Context, n: int) -> None: ...


follow.enqueue("one")  # error: arg-type
