from packhorse import Packhorse, chain

app = Packhorse("memory://typed")


@app.task
async def add(a: int) -> int:
    return a


chain(add.job(1), add)  # error: arg-type
