"""The script that everybody copies, in its usual form: torchvision data set, per-image transforms, one plot."""

import sys

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import mse_loss, one_hot
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


def main(root: str, picture: str) -> None:
    torch.manual_seed(0)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train_loader = DataLoader(datasets.MNIST(root, transform=transform), batch_size=512, shuffle=True)
    test_loader = DataLoader(datasets.MNIST(root, train=False, transform=transform), batch_size=512)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(3):
        for images, labels in train_loader:
            loss = mse_loss(net(images), one_hot(labels, 10).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    num_correct = 0
    with torch.no_grad():
        for images, labels in test_loader:
            num_correct += int((net(images).argmax(dim=1) == labels).sum())
    print(f"accuracy {num_correct / 10_000:.4f}")
    plt.plot(losses)
    plt.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
