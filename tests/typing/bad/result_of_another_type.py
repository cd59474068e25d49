from packhorse import Packhorse

app = Packhorse("memory://")


@app.task
async def add(a: int) -> int:
    return a


text: str = add.enqueue(1).result()  # error: assignment
